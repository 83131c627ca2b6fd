"""Tune the summaries by rewards: `python jobs/tune_summarizer.py --config FILE run=FOLDER`."""

import sys

from mmsrarec_ray.job import main
from mmsrarec_ray.summarize.tuning.stage import TuneSummarizer

if __name__ == "__main__":
    sys.exit(main(TuneSummarizer))
