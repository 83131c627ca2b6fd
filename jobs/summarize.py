"""Turn every item of a catalogue into keywords: `python jobs/summarize.py --config FILE run=FOLDER`."""

import sys

from mmsrarec_ray.job import main
from mmsrarec_ray.summarize.stage import Summarize

if __name__ == "__main__":
    sys.exit(main(Summarize))
