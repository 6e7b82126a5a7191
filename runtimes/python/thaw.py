"""What function code may ask of the runtime.

    import thaw

    @thaw.after_restore
    def reconnect():
        ...
"""

_hooks = {"before_snapshot": [], "after_restore": []}


def before_snapshot(function):
    """Calls `function()` before a snapshot of this instance is taken: close what must not be copied. Returns it."""
    _hooks["before_snapshot"].append(function)
    return function


def after_restore(function):
    """Calls `function()` in every instance that starts from a snapshot, before its first invocation. Returns it."""
    _hooks["after_restore"].append(function)
    return function
