"""`make torture`: a table of what was tried and failed, and of each failure what did not hold and its command."""

import sys

import accidents
import corpus
from harness import torture

sys.exit(torture(accidents.cases, corpus.documents, corpus.recordings, corpus.settings, corpus.functions))
