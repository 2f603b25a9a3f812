"""Models move in and out: PyTorch, Keras, ONNX, RTNeural.

Each module here has a pair of functions, ``from_x`` and ``to_x``, which are also
``fastgates.from_x`` and ``fastgates.to_x``; :mod:`.formats` chooses by a file's suffix. The other
package is imported when its module is, and not before.

What comes in is rebuilt of layers, ``Dense`` and ``Scaling``; what these cannot express is refused
by its name, never approximated. No file is ever executed.
"""
