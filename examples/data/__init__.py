"""Real data for the examples.

`mnist()`, `cifar10()` and `imdb()` read the files of the folder that the environment variable
`ADAMX_DATA_DIR` names; what is not there, Hugging Face's library `datasets` downloads
(`pip install 'adamx[data]'`); without either they say so. `load()` downloads nothing: it gives
MNIST where the folder has it, else scikit-learn's digits.

    mnist/{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]    also right in the folder
    cifar10/cifar10_subset_10k_2k.npz       {train,test}_{x,y}
    imdb/imdb_bow10k.npz                    {train,test}_{indptr,indices,counts,label}, vocab
    shakespeare/input.txt                   the text; `shakespeare()` reads it and downloads nothing
"""

from examples.data.images import Dataset, cifar10, load, load_digits, load_mnist, mnist
from examples.data.reviews import Bags, Reviews, imdb
from examples.data.sources import read_idx
from examples.data.text import Text, shakespeare

__all__ = [
    "Bags",
    "Dataset",
    "Reviews",
    "Text",
    "cifar10",
    "imdb",
    "load",
    "load_digits",
    "load_mnist",
    "mnist",
    "read_idx",
    "shakespeare",
]
