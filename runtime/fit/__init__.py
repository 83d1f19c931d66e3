"""`prunevid fit`: will a model fit a device, and how fast will it run there? An estimate from published figures."""
