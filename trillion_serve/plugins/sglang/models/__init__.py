"""The package that SGLang takes model classes from: each module has one as ``EntryClass``.

They are imported here, because SGLang only logs a module that cannot be imported, and would then serve a model by code
that knows nothing of its windows.
"""

from trillion_serve.plugins.sglang.models import gravity, tri70b, trillion_7b, vaetki

__all__ = ["gravity", "tri70b", "trillion_7b", "vaetki"]
