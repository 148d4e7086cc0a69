"""Every error a user can cause; each message names the cause and the fix."""


class SpecMoEError(Exception):
    """Base of all errors that this package raises for its users."""


class StoreError(SpecMoEError):
    """An expert store that is missing, truncated, corrupt or of another version."""


class BudgetError(SpecMoEError):
    """An expert budget that cannot hold what the options ask for."""


class HostMemoryError(SpecMoEError):
    """Host memory that cannot hold, or cannot pin, the experts."""


class UnsupportedModelError(SpecMoEError):
    """A model family or checkpoint layout this package cannot offload."""


class OptionError(SpecMoEError, ValueError):
    """An option out of range, or two that contradict each other."""


class BufferedReadsWarning(UserWarning):
    """Direct reads (O_DIRECT) of an expert store fail: reads go through the page cache, which may serve some."""
