# Comments only: monitorServices.py runs every executable file of this folder.
