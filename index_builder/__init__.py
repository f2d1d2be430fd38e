"""The offline half: from a data set to a trained bundle and a filled bank (command ``m3tr-build``)."""
