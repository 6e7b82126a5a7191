"""Runs a handler once and prints its answer: what `docker run`, `runc run` and `bwrap` start."""

import json
import os
import sys

sys.path.insert(0, "/function")
from main import handler

print(json.dumps(handler(json.loads(os.environ["EVENT"]), None)), flush=True)
