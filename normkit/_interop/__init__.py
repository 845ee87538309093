"""The one door: foreign arrays in, results out. Nothing reaches a kernel that did not pass here."""

from .arguments import beside as beside
from .arguments import broadcastable as broadcastable
from .arguments import epsilon as epsilon
from .arguments import gradient as gradient
from .arguments import number as number
from .arguments import on_axes as on_axes
from .arguments import on_channels as on_channels
from .doors import Incoming as Incoming
from .doors import glance as glance
from .doors import ingest as ingest
from .libraries import Library as Library
from .libraries import library_of as library_of
from .libraries import memory_order as memory_order
from .libraries import native as native
from .results import gradient_dtype as gradient_dtype
from .results import new_like as new_like
from .results import overlap as overlap
from .results import refuse_overlap as refuse_overlap
from .results import result_array as result_array
from .results import result_dtype as result_dtype
from .results import same_memory as same_memory
