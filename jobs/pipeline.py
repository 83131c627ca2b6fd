"""Run the whole chain, from the data to the report: `python jobs/pipeline.py --config FILE run=FOLDER`."""

import sys

from mmsrarec_ray.job import main
from mmsrarec_ray.pipeline import Pipeline

if __name__ == "__main__":
    sys.exit(main(Pipeline))
