"""Offline part of the project: turns a data set into a trained bundle and a filled bank (command ``m3tr-build``)."""

import os

# A thread of OpenMP that waits for another one sleeps. By default it spins. On a machine with other work, it then takes
# the core that the other thread needs, and training takes up to 15 times as long. OpenMP reads this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
