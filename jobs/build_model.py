"""Make a small multimodal model: `python jobs/build_model.py --config configs/tiny.yaml run=FOLDER`."""

import sys

from mmsrarec_ray.job import main
from mmsrarec_ray.summarize.build import BuildModel

if __name__ == "__main__":
    sys.exit(main(BuildModel))
