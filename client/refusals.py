"""What goes back to the coordinator when a site does not do what it was asked.

Guarantee: no text of an unexpected error leaves the site, since it may quote a patient's data, and no name of
a file of the site. The coordinator gets the error's class, the site's own log the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from common.errors import (
    BudgetSpentError,
    FederationError,
    LedgerBrokenError,
    LedgerMissingError,
    LedgerRolledBackError,
    WorkerAwayError,
)
from common.ids import RunId, SiteId
from common.message_fields import RefusalCause
from common.messages import Message, refusal

_FILE = "a file of this site cannot be used"
LEDGER_ERRORS = (LedgerBrokenError, LedgerMissingError, LedgerRolledBackError)

logger = logging.getLogger(__name__)


def reply_or_refusal(work: Callable[[], Message], run: RunId, site: SiteId) -> Message:
    """What ``work`` returns, or a ``Refusal`` with the reason why it does not."""
    try:
        return work()
    except LEDGER_ERRORS:
        # What it says names the site's own files.
        logger.exception("%s: the ledger of what was spent stops this site", site)
        return refusal(run, site, "its ledger is damaged or older than it was; see the site's log", "ledger")
    except FederationError as error:
        if getattr(error, "path", None) is not None:
            # It names a file, which may be a patient's.
            logger.exception("%s: a file of this site cannot be used", site)
            return refusal(run, site, f"{_FILE} ({type(error).__name__}); see the site's log")
        return refusal(run, site, str(error), _cause(error))
    except Exception as error:
        # Whatever it is, Flower and gRPC would send its text on.
        logger.exception("%s: a task failed", site)
        return refusal(run, site, f"the task failed with {type(error).__name__}; see the site's log")


def _cause(error: FederationError) -> RefusalCause:
    if isinstance(error, WorkerAwayError):
        return "away"
    return "budget" if isinstance(error, BudgetSpentError) else "failed"
