"""The run folder: how it is made and read, its stages, its logs.

Called, it lists the runs of a folder, as :func:`cosmos_hpc.api.runs` says: that function and this
package are one attribute of ``cosmos_hpc``.
"""

import sys
import types
from typing import Any

from cosmos_hpc.utils.imports import load


class _Door(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return load("cosmos_hpc.api:runs")(*args, **kwargs)


sys.modules[__name__].__class__ = _Door
