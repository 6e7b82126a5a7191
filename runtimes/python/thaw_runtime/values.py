"""From bodies to events, and from what handlers return to answers."""

from json import JSONDecoder, JSONEncoder

from .connection import BYTES, JSON, LINES, TEXT


class InvalidPayload(Exception):
    """The body is not what its content type says."""


def _reject_constant(name):
    raise ValueError("%s is not JSON" % name)


decode_json = JSONDecoder(parse_constant=_reject_constant).decode
_encode_json = JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value):
    return _encode_json(value).encode()


def read_body(body, content_type):
    """The body as the handler sees it: a JSON value, text or bytes."""
    if not body:
        return None
    if content_type != JSON:
        content_type = content_type.partition(";")[0].strip().lower()
    if content_type == JSON or content_type.endswith("+json"):
        try:
            return decode_json(body.decode())
        except (ValueError, RecursionError) as error:
            raise InvalidPayload("The body is not valid JSON: %s" % error) from None
    if content_type == "" or content_type == "application/x-www-form-urlencoded":
        try:
            text = body.decode()
        except ValueError:
            return body
        try:
            return decode_json(text)
        except (ValueError, RecursionError):
            return text
    if content_type.startswith("text/"):
        try:
            return body.decode()
        except ValueError as error:
            raise InvalidPayload("The body is not UTF-8 text: %s" % error) from None
    return body


def read_event(meta, body):
    value = read_body(body, meta["content_type"])
    if meta["trigger"] != "http":
        return value
    http = meta["http"]
    return {
        "method": http["method"],
        "path": http["path"],
        "query": _read_query(http["query"]),
        "headers": http["headers"],
        "body": value,
    }


def _read_query(query):
    query = query.lstrip("?")
    if not query:
        return {}
    from urllib.parse import parse_qsl

    return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=None))


def encode(value):
    """(content type, body) of a value that is not a stream."""
    if isinstance(value, str):
        return TEXT, value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return BYTES, bytes(value)
    return JSON, to_json(value)


def encode_first_piece(piece):
    """(content type of the stream, bytes) of the piece that decides what kind of stream it is."""
    content_type, body = encode(piece)
    return (LINES, body + b"\n") if content_type == JSON else (content_type, body)


def encode_piece(piece, content_type):
    if content_type == LINES:
        return to_json(piece) + b"\n"
    kind, body = encode(piece)
    return body + b"\n" if kind == JSON else body


def read_http_answer(value):
    """(meta without content type, content type or None, body value) of `{status, headers, body}`; None for other values."""
    if not isinstance(value, dict):
        return None
    status = value.get("status", value.get("statusCode"))
    if type(status) is not int:
        return None
    if not 100 <= status <= 599:
        raise ValueError("%d is not an HTTP status" % status)
    content_type = None
    headers = {}
    for name, content in (value.get("headers") or {}).items():
        content = [_header_text(one) for one in content] if isinstance(content, (list, tuple)) else _header_text(content)
        if str(name).lower() == "content-type":
            content_type = content if isinstance(content, str) else content[0] if content else None
            if content_type is not None and not (len(content_type) <= 256 and content_type.isascii() and content_type.isprintable()):
                raise ValueError("the content type of the answer is not valid")
        elif len(str(name)) > 256 or len(content) > (8192 if isinstance(content, str) else 64):
            raise ValueError("the header %.64s of the answer is too large" % name)
        else:
            headers[str(name)] = content
    body = value.get("body")
    if body is None:
        body = ""
    elif value.get("isBase64Encoded") is True:
        from binascii import a2b_base64

        body = a2b_base64(body)
    return {"status": status, "headers": headers}, content_type, body


def _header_text(value):
    text = str(value)
    if len(text) > 8192:
        raise ValueError("a header of the answer is larger than 8 KiB")
    return text
