"""The engine: register tiles, the passes made of them, packed weights, and the split over threads.

Read :mod:`.tile` first, then :mod:`.forward`, :mod:`.backward` and :mod:`.gradients`; ``call`` says
what a kernel is given, ``pack`` how weights lie, and ``passes`` ties these together.
"""
