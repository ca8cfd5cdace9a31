"""The CEL engine without the shell that comes in its package.

Rule: `import cel` loads an interactive command line as well, with three hundred modules that every worker would hold
for nothing (9 MB). The engine is one native module, and that alone is loaded here.
Everybody else imports it from here.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING

__all__ = ["cel"]

_NAME = "cel.cel"

if TYPE_CHECKING:
    import cel
elif _NAME in sys.modules:
    cel = sys.modules[_NAME]
else:
    _package = find_spec("cel")
    if _package is None:
        raise ImportError("the package common-expression-language is not installed")
    _spec = PathFinder.find_spec(_NAME, _package.submodule_search_locations)
    if _spec is None or _spec.loader is None:
        raise ImportError("the package common-expression-language has no native module `cel.cel`")
    # Known by its name, because it cannot be loaded twice: who imports the package all the same gets this one.
    cel = sys.modules[_NAME] = module_from_spec(_spec)
    _spec.loader.exec_module(cel)
