"""First grain: makes a greeting of a name."""


def handle(event, context):
    name = event.data.decode().strip() or "world"
    return f"Hello, {name}!"
