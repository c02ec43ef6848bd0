"""Finds a handler: "file.py:handle" or "package.module:handle"."""

import importlib
import importlib.util
import os
import sys


def load(handler):
    """Imports the handler's module and returns (module, function); whatever it raises, raises."""
    place, _, name = handler.rpartition(":")
    if not place or not name:
        raise ValueError(f'handler "{handler}": write "file.py:function" or "module:function"')
    if place.endswith(".py"):
        module = _import_file(os.path.abspath(place))
    else:
        # `python -m` looks in the worker's directory first, which is app.toml's.
        module = importlib.import_module(place)
    function = getattr(module, name, None)
    if function is None:
        raise AttributeError(f"{place} has no function {name}")
    if not callable(function):
        raise TypeError(f"{name} in {place} is a {type(function).__name__}, not a function")
    return module, function


def _import_file(path):
    directory, file = os.path.split(path)
    # Its neighbours can be imported by name, as if the file were run as a program.
    if directory not in sys.path:
        sys.path.insert(0, directory)
    name = file[: -len(".py")]
    if name in sys.modules:
        name = f"{name} (handler)"  # a name that no import statement can mean
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: pickle and dataclasses look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
