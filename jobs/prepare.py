"""Import a catalogue and its interactions: `python jobs/prepare.py --config FILE data.path=FOLDER run=FOLDER`."""

import sys

from mmsrarec_ray.data.prepare import Prepare
from mmsrarec_ray.job import main

if __name__ == "__main__":
    sys.exit(main(Prepare))
