"""Second grain: what the first one said, louder."""


def handle(event, context):
    return {"answer": event.data.decode().upper(), "grain": context.grain}
