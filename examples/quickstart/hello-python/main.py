"""Word statistics of a text."""

import re
from collections import Counter


def handler(event, context):
    words = re.findall(r"\w+", event["text"].lower())
    if not words:
        return {"words": 0, "distinct": 0, "most_common": None, "longest": None}
    counts = Counter(words)
    word, times = counts.most_common(1)[0]
    print(f"counted {len(words)} words")
    return {
        "words": len(words),
        "distinct": len(counts),
        "most_common": {"word": word, "times": times},
        "longest": max(words, key=len),
    }
