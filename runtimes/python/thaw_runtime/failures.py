"""What went wrong in user code, in the words of the protocol. Loaded with the first failure."""

import os

_own = os.path.dirname(os.path.abspath(__file__)) + os.sep


def describe(error):
    """{type, message, stack?}: the stack begins in user code."""
    try:
        message = str(error)
    except Exception as broken:
        message = "the error has no text: %s" % type(broken).__name__
    failure = {"type": type(error).__name__[:256], "message": _clean(message)[:32768]}
    stack = _stack(error)
    if stack:
        failure["stack"] = _clean(stack)[-131072:]
    return failure


def _stack(error):
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_own):
        trace = trace.tb_next
    if trace is None and not isinstance(error, SyntaxError):
        return None
    try:
        from traceback import format_exception

        return "".join(format_exception(type(error), error, trace)).rstrip("\n")
    except Exception:
        return None


def _clean(text):
    # Half surrogate pairs cannot be sent as UTF-8.
    return text.encode("utf-8", "replace").decode()
