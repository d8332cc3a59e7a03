"""One site's tracks behind one door: Flower knows a site, a task names its track."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from client.refusals import reply_or_refusal
from common.errors import FederationError
from common.ids import SiteId
from common.messages import Bundle, Message


class TrackSessions:
    """Hands each task to the session of its track."""

    def __init__(self, site_id: SiteId, sessions: Mapping[str, Callable[[Message], Message]]) -> None:
        """The site's sessions, by track; one at least."""
        if not sessions:
            raise ValueError(f"Expected a session for a track of {site_id}, got none")
        self._site, self._sessions = site_id, dict(sessions)

    def __call__(self, message: Message) -> Message:
        """The answer; a bundle may hold tasks of several tracks. FederationError says why there is none."""
        if isinstance(message, Bundle):
            return Bundle(parts=tuple(self._answer_part(part) for part in message.parts))
        return self._answer(message)

    def _answer_part(self, part: Message) -> Message:
        """As for a message of its own, but a part that fails must not cost the others."""
        return reply_or_refusal(lambda: self._answer(part), part.run_id, self._site)

    def _answer(self, message: Message) -> Message:
        track = getattr(message, "track", None)
        if track not in self._sessions:
            known = ", ".join(sorted(self._sessions))
            raise FederationError(f"{self._site}: expected a task of track {known}, got {track}")
        return self._sessions[track](message)
