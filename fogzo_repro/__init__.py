"""Reference reproduction of FOGZO, the straight-through estimator with zeroth-order information.

``python -m fogzo_repro`` trains, ``fogzo_repro.estimators`` is the method as a library,
:func:`load_run` gives a trained model back.
"""

import sys

# Raised whenever a change alters the numbers a run produces; a record of an older version is stale.
METHOD_VERSION = 1


def __getattr__(name: str):
    """Import :func:`load_run` on first use, so that the estimators alone need only torch."""
    if name == "load_run":
        from fogzo_repro.stored import load_run

        return load_run
    raise AttributeError(f"module 'fogzo_repro' has no attribute {name!r}")


# While `python -m` looks for its module, argv is that; the library itself needs torch alone.
if sys.argv[:1] == ["-m"] and f"{sys.orig_argv[sys.orig_argv.index('-m') + 1]}.".startswith(
    "fogzo_repro."
):
    from fogzo_repro.project import begin_command

    begin_command()
