"""The work of every Python contender: the same JSON in, the same JSON out."""


def work(event):
    return {"hello": event["name"], "count": len(event["numbers"]), "sum": sum(event["numbers"])}
