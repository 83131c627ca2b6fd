"""Fine-tune the recommender: `python jobs/tune_recommender.py --config FILE run=FOLDER`."""

import sys

from mmsrarec_ray.job import main
from mmsrarec_ray.rank.stage import TuneRecommender

if __name__ == "__main__":
    sys.exit(main(TuneRecommender))
