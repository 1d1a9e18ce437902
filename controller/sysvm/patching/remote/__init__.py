"""The program that runs on a system VM.

Standard library only, Python 3.5 and newer, nothing of ours from outside this folder: it is packed into one bundle,
sent over the SSH session and imported from memory; for an operation the same bundle is stored on the VM. Every change
of a file goes through `files`, every decision of an operation through its `journal`, so it can be killed at every line.
"""
