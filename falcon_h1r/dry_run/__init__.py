"""What a run would do, without doing it (`dry_run=true`)."""

from falcon_h1r.dry_run.description import describe

__all__ = ["describe"]
