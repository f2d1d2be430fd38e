"""Offline part of the project: turns a data set into a trained bundle and a filled bank (command ``m3tr-build``)."""

import os

# A waiting thread of OpenMP spins only briefly before it sleeps. By default it spins long. Beside other work, it then takes
# the core that the other thread needs. OpenMP reads this when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
