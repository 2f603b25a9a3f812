"""The engine: the product, the passes made of it, packed weights, and the split over threads.

Read :mod:`.multiply` first, then :mod:`.forward`, :mod:`.backward` and :mod:`.gradients`; ``call``
says what a kernel is given, ``pack`` how weights lie, and ``passes`` ties these together.
"""
