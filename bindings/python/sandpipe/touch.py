"""Makes a waiting instance own the pages that its first call will write to.

Whoever looks at an object writes its reference count, and the first write to a page after a fork
copies the page. Looking at what a function names does that beforehand; nothing of it is run.
"""

import types

DEPTH = 2  # functions that the handler calls, and those that these call


def touch(function, depth=DEPTH):
    """Looks at a function, its constants, and what it names in its module."""
    code = getattr(function, "__code__", None)
    names = getattr(function, "__globals__", None)
    if not isinstance(code, types.CodeType) or not isinstance(names, dict):
        return
    for constant in code.co_consts:
        del constant
    for name in code.co_names:
        value = names.get(name)
        if isinstance(value, types.ModuleType):
            # Its dictionary, not getattr: a module's own __getattr__ would be run.
            members = vars(value)
            for member in code.co_names:
                members.get(member)
        elif isinstance(value, types.FunctionType) and depth > 0:
            touch(value, depth - 1)
