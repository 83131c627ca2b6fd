"""Compare methods: `python jobs/evaluate.py --config FILE run=FOLDER 'evaluate.methods=[popularity, itemknn]'`."""

import sys

from mmsrarec_ray.evaluate.stage import Evaluate
from mmsrarec_ray.job import main

if __name__ == "__main__":
    sys.exit(main(Evaluate))
