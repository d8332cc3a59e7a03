"""A teacher's ranking becomes preference pairs.

``chosen`` is the head of the ranking, ``rejected`` comes from its bottom or its middle (MINT, arXiv
2505.05736; POPri for the middle ranks). Only answers with training cases at this site may be rejected:
the bottom of a ranking is full of answers the site has never seen, and rejecting them would teach "absent
here, so wrong". Patients without a pair are counted with the reason.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from math import comb

import numpy as np

from client.preferences.answers import write_answers
from client.teacher.rank import Ranking
from common.plan import LabelPolicy, PreferencePlan, RejectedFrom, RejectFrom
from common.tracks import AnswerList
