"""What goes wrong between the processes of a run."""


class SaidOnce(ValueError):
    """An error that every process of a run has: the first one says it."""


class LauncherError(SaidOnce):
    """What the launcher was asked for is not done here."""


class PeerError(ValueError):
    """Another process of the run is gone or stuck; the message says which, and what to do."""
