"""Log lines: words with the time for people, or JSON for machines, without secrets either way."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

from klray.words.outside import fit, one_line
from klray.words.secrets import without_secrets

# What a record may say beside its words: of which host and checkpoint it speaks, and numbers.
EXTRA: Final = ("host", "checkpoint", "job", "summary")


class Words(logging.Formatter):
    """``10:15:00 words``; what a worker said has its host and checkpoint before it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line."""
        said = [one_line(str(getattr(record, name))) for name in ("host", "checkpoint") if getattr(record, name, "")]
        record.message = f"{' '.join(said)}: {record.message}" if said else record.message
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, message, and what the record says of host, checkpoint and job."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": without_secrets(record.getMessage()),
            **{name: value for name in EXTRA if (value := getattr(record, name, None)) is not None},
        }
        if record.exc_info:
            line["traceback"] = record.exc_text or without_secrets(self.formatException(record.exc_info))
        return json.dumps(fit(line), ensure_ascii=False)
