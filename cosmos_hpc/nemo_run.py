"""NeMo-Run's own objects for a request."""

import nemo_run  # noqa: F401
