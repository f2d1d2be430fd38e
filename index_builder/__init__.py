"""Offline part of the project: turns a data set into a trained bundle and a filled bank (command ``m3tr-build``)."""
