"""The table of all cells that recurrent layers are written with."""

from kquant.rewrites.standardize.cells import Cell, GruCell, LstmCell, SimpleCell
from kquant.rewrites.standardize.conv_cells import ConvLstm1dCell, ConvLstm2dCell
from kquant.rewrites.standardize.cudnn_cells import CudnnGruCell, CudnnLstmCell

CELLS: dict[str, type[Cell]] = {"LSTM": LstmCell, "GRU": GruCell, "SimpleRNN": SimpleCell,
                                "LSTMCell": LstmCell, "GRUCell": GruCell, "SimpleRNNCell": SimpleCell,
                                "ConvLSTM1D": ConvLstm1dCell, "ConvLSTM2D": ConvLstm2dCell,
                                "CuDNNLSTM": CudnnLstmCell, "CuDNNGRU": CudnnGruCell}
"""{kind of a layer or cell: its layers}."""
