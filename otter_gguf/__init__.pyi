from .config import BaseGeometry as BaseGeometry
from .config import HeadConfig as HeadConfig
from .config import InsertionConfig as InsertionConfig
from .context.state import ContextState as ContextState
from .errors import ConfigError as ConfigError
from .errors import ContextFullError as ContextFullError
from .errors import EngineError as EngineError
from .errors import FileError as FileError
from .errors import MismatchError as MismatchError
from .errors import OtterError as OtterError
from .errors import UnsupportedError as UnsupportedError
from .guidance.args import ARGS as ARGS
from .guidance.base import Candidates as Candidates
from .guidance.base import Policy as Policy
from .guidance.base import Signal as Signal
from .guidance.best_of_n import BestOfN as BestOfN
from .guidance.cards import CARDS as CARDS
from .guidance.chunk_beam import ChunkBeam as ChunkBeam
from .guidance.contrast import Contrast as Contrast
from .guidance.dexperts import DExperts as DExperts
from .guidance.ensemble import Ensemble as Ensemble
from .guidance.gated import Gated as Gated
from .guidance.pargs import PARGS as PARGS
from .guidance.rad import RAD as RAD
from .guidance.search import Search as Search
from .guidance.speculative_rejection import SpeculativeRejection as SpeculativeRejection
from .guidance.threshold import Threshold as Threshold
from .guidance.vocabulary import Vocabulary as Vocabulary
from .isolation import IsolatedOtter as IsolatedOtter
from .isolation import open_model as open_model
from .model import Otter as Otter
from .scoring import Score as Score
from .serving.async_otter import AsyncOtter as AsyncOtter

__all__: list[str]
__version__: str
