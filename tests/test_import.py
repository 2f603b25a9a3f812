"""What ``import fastgates`` does not do: import heavy packages, compile."""

from helpers import run_python


def test_imports_no_heavy_package():
    result = run_python("""
        import sys
        import numba

        by_numba = set(sys.modules)
        import fastgates

        heavy = ("torch", "sklearn", "matplotlib", "pandas", "tqdm", "scipy", "safetensors", "onnx")
        for name in (*heavy, "numba.cuda"):
            mine = {m for m in sys.modules if m == name or m.startswith(name + ".")} - by_numba
            assert not mine, sorted(mine)
        print("done")
    """)
    assert result.stdout.strip() == "done"
    assert result.stderr == ""


def test_compiles_nothing():
    result = run_python("""
        from numba.core import event

        with event.install_recorder("numba:compile") as recorder:
            import fastgates
            from fastgates import _jit

            assert not recorder.buffer, recorder.buffer
            kernels = _jit.kernels()
            assert kernels
            for name, kernel in kernels.items():
                assert not kernel.signatures, name
            layer = fastgates.RNN(2, 3)  # a layer is built without compiling, too
            assert not recorder.buffer, recorder.buffer
            layer([[[1.0, 2.0]]])
            assert any(kernel.signatures for kernel in _jit.kernels().values())
        print("done")
    """)
    assert result.stdout.strip() == "done"
    assert result.stderr == ""


def test_makes_no_dispatcher_and_leaves_the_collector_on():
    """What is not needed at import is made when it is; the collector pauses for the import only."""
    result = run_python("""
        import gc
        import fastgates
        from fastgates import _jit

        assert gc.isenabled()
        for name, kernel in _jit.kernels().items():
            assert "dispatcher" not in vars(kernel), name
        print("done")
    """)
    assert result.stdout.strip() == "done"


def test_the_collector_stays_off_where_it_was():
    run_python("import gc; gc.disable(); import fastgates; assert not gc.isenabled()")


def test_public_names_exist():
    import fastgates

    assert sorted(set(fastgates.__all__)) == sorted(fastgates.__all__)
    for name in fastgates.__all__:
        assert getattr(fastgates, name).__doc__, name
    assert fastgates.__version__
