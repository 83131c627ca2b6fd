"""Find users who were at the same point: `python jobs/retrieve.py --config FILE run=FOLDER`."""

import sys

from mmsrarec_ray.job import main
from mmsrarec_ray.retrieve.stage import Retrieve

if __name__ == "__main__":
    sys.exit(main(Retrieve))
