"""The compiled part of hagmil; everything else of the package is described in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "hagmil.runtime.tiles._tile_kernel",
            ["hagmil/runtime/tiles/_tile_kernel.c"],
            depends=[
                "hagmil/runtime/tiles/_libjpeg.h",
                "hagmil/runtime/tiles/_reduction.h",
                "hagmil/runtime/tiles/_resampling.h",
                "hagmil/runtime/tiles/_tile_decoder.h",
                "hagmil/runtime/tiles/_tile_types.h",
                "hagmil/runtime/tiles/_tile_work.h",
            ],
            libraries=["dl"],  # libjpeg-turbo is loaded at run time
            py_limited_api=True,
            optional=True,  # without a compiler or libjpeg-turbo's headers the NumPy equivalent is used
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
