"""Peers in PyTorch, with the bundle's own weights: the reference, and transformers' towers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from PIL import Image
from torch import Tensor

from fgclip_rt.arrays import Array
from fgclip_rt.bundle import Bundle
from fgclip_rt.errors import ArgumentError
from fgclip_rt.export import LocalFiles, checkpoint_source, find_model
from fgclip_rt.export.families import table as families
from fgclip_rt.export.families.base import ReferenceModel
from fgclip_rt.export.reference.roi_align import region_features
from fgclip_rt.graphs import ImageInputs, Inputs, RegionInputs, TextInputs
from fgclip_rt.interface import DENSE_FEATURES
from fgclip_rt.preparation import preparation

from .events import between_events
from .inputs import make_inputs, noise_images, walk_type
from .task import Case, CheckpointName, Clocked, Contender, Device, Run, UnableError

Function: TypeAlias = Callable[..., Tensor]


def load_reference(bundle: Bundle, checkpoint: CheckpointName | None) -> ReferenceModel:
    """The reference with a bundle's weights.

    Raises:
        ArgumentError: only a checkpoint holds the weights, and none was given.
        CheckpointError: the weights cannot be loaded.
    """
    if checkpoint is not None:
        paths = (checkpoint.weights, checkpoint.config, checkpoint.tokenizer, checkpoint.processor)
        files = LocalFiles(*(None if path is None else Path(path) for path in paths))
        return checkpoint_source(checkpoint.model, files=files).load()[0]
    info = bundle.manifest.model
    spec = find_model(info.name)
    if info.weights == "shipped":
        return checkpoint_source(info.name).load()[0]
    if info.weights != "random" or spec is None:
        raise ArgumentError(f"{info.name} has weights that only its checkpoint holds; pass --checkpoint.")
    return families.random(spec.family, spec.config)


class Tower:
    """The reference's own computation of a case: a function of tensors, and its inputs."""

    def __init__(self, bundle: Bundle, reference: ReferenceModel, device: Device = "cpu") -> None:
        self.bundle, self.reference, self.device = bundle, reference, device
        reference.module.to(device)
        self._preparation = preparation(bundle.manifest.image)

    def function(self, case: Case) -> Function:
        """The function that computes features, not normalised, from :meth:`inputs`.

        Raises:
            UnableError: the model has no such features.
        """
        module: Any = self.reference.module
        if case.graph == "text":
            kind = walk_type(self.bundle, case.length)
            return lambda input_ids, mask: self.reference.text_features(input_ids, mask, kind)
        if case.graph == "region":
            return lambda dense, boxes: region_features(dense, boxes.cpu().numpy())
        if case.graph == "vision":
            return cast(Function, module.get_image_features)
        if not hasattr(module, "get_image_dense_features"):
            raise UnableError("the model has no dense features")
        return cast(Function, module.get_image_dense_features)

    def inputs(self, case: Case) -> tuple[Tensor, ...]:
        """The inputs of :meth:`function`, made from the inputs that all contenders have."""
        inputs = make_inputs(self.bundle, case)
        if isinstance(inputs, TextInputs):
            return self._moved(inputs.input_ids), self._moved(inputs.attention_mask)
        if isinstance(inputs, RegionInputs):
            height, width = inputs.spatial_shapes[0].tolist()
            dense = self._moved(inputs.dense_features).view(height, width, -1)
            return dense, self._moved(inputs.boxes)
        assert isinstance(inputs, ImageInputs)
        return self._image_inputs(inputs)

    def prepared(self, images: Sequence[Image.Image], length: int) -> tuple[Tensor, ...]:
        """The inputs of :meth:`function` for images in memory, prepared to ``length`` patches at most."""
        return self._image_inputs(ImageInputs.of([self._preparation(image, length) for image in images]))

    def _image_inputs(self, inputs: ImageInputs) -> tuple[Tensor, ...]:
        tensors = self.reference.image_inputs(self._moved(inputs.patches), self._moved(inputs.spatial_shapes))
        # Copies, because autograd's kernels refuse tensors that were made in inference mode.
        return tuple(tensor.clone() for tensor in tensors)

    def _moved(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class GraphTower(Tower):
    """Our own graphs as PyTorch modules, before they become ONNX: the reference with the rewrites of the export."""

    def __init__(self, bundle: Bundle, reference: ReferenceModel, device: Device = "cpu") -> None:
        self.bundle, self.reference, self.device = bundle, reference, device
        # The reference itself stays on the CPU, where the rewrites are computed.
        self._sources = {name: source for name, source in reference.graphs().items() if name != "region"}
        for source in self._sources.values():
            source.module.eval().to(device)
        self._preparation = preparation(bundle.manifest.image)

    def function(self, case: Case) -> Function:
        """As :meth:`Tower.function`."""
        if case.graph not in self._sources:
            raise UnableError(f"the model has no such {case.graph} graph")
        source = self._sources[case.graph]
        output = list(source.outputs).index(DENSE_FEATURES) if case.graph == "dense" else 0

        def call(*inputs: Tensor) -> Tensor:
            features: Tensor = source.module(*inputs)[output]
            return features

        return call

    def inputs(self, case: Case) -> tuple[Tensor, ...]:
        """As :meth:`Tower.inputs`."""
        return self._fed(case.graph, make_inputs(self.bundle, case))

    def prepared(self, images: Sequence[Image.Image], length: int) -> tuple[Tensor, ...]:
        """As :meth:`Tower.prepared`."""
        return self._fed("vision", ImageInputs.of([self._preparation(image, length) for image in images]))

    def _fed(self, graph: str, inputs: Inputs) -> tuple[Tensor, ...]:
        return tuple(self._moved(getattr(inputs, name)) for name in self._sources[graph].inputs)


class PyTorch:
    """The reference, eager.

    Attributes:
        autocast: whether PyTorch computes in float16 the operators that its ``autocast`` lists.
        tower: the computation.
    """

    autocast = False
    tower: type[Tower] = Tower

    def __init__(self, contender: Contender) -> None:
        torch.set_num_threads(contender.threads)
        bundle = Bundle.open(Path(contender.bundle), check_hashes=False)
        self._tower = self.tower(bundle, load_reference(bundle, contender.checkpoint), contender.device)

    def prepare(self, case: Case) -> Run:
        tower, call = self._tower, self.compiled(self._tower.function(case))

        @torch.inference_mode()
        def run(inputs: Sequence[Tensor]) -> Tensor:
            with torch.autocast(tower.device, torch.float16, enabled=self.autocast):
                return call(*inputs)

        if case.end_to_end:
            images = noise_images(tower.bundle.manifest.image, case)
            return lambda: _on_host(run(tower.prepared(images, case.length)))
        inputs = tower.inputs(case)
        if tower.device == "cpu":
            return lambda: _on_host(run(inputs))
        return Clocked(lambda: _on_host(run(inputs)), between_events(lambda: run(inputs)))

    def compiled(self, call: Function) -> Function:
        """The function to call instead of ``call``."""
        return call


class Compiled(PyTorch):
    """The reference by ``torch.compile``, compiled anew for each case."""

    def prepare(self, case: Case) -> Run:
        if case.graph == "region":
            raise UnableError("a loop over boxes, which takes longer to compile than to run")
        torch.compiler.reset()
        return super().prepare(case)

    def compiled(self, call: Function) -> Function:
        return torch.compile(call, dynamic=False)


class Autocast(PyTorch):
    """The reference, eager, in float16 by autocast."""

    autocast = True


class AutocastCompiled(Compiled):
    """The reference by ``torch.compile``, in float16 by autocast."""

    autocast = True


class GraphsCompiled(AutocastCompiled):
    """Our own graphs by ``torch.compile``, in float16 by autocast: neither a loop over images nor one over boxes."""

    tower = GraphTower


def _on_host(features: Tensor) -> Array:
    array: Array = features.float().cpu().numpy()
    return array


class Transformers:
    """transformers' SigLIP 2 towers: vision, and short text."""

    def __init__(self, contender: Contender) -> None:
        import transformers

        torch.set_num_threads(contender.threads)
        bundle = Bundle.open(Path(contender.bundle), check_hashes=False)
        self._tower = Tower(bundle, load_reference(bundle, contender.checkpoint))
        towers = self._tower.reference.siglip2_towers()
        if towers is None:
            raise UnableError("transformers has no tower of this family that takes its weights as they are")
        config, weights = towers
        self._model = transformers.Siglip2Model(transformers.Siglip2Config(**config))
        missing = self._model.load_state_dict(weights, strict=False, assign=True).missing_keys
        if missing:
            raise UnableError(f"transformers' tower asks for weights that the model lacks: {missing[0]}")
        self._model.eval()

    def prepare(self, case: Case) -> Run:
        if case.end_to_end:
            raise UnableError("it takes images that are prepared")
        first, *others = self._tower.inputs(case)
        call: Callable[[], Any]
        if case.graph == "vision":
            mask, shapes = others
            call = partial(self._model.vision_model, first, mask.long(), shapes)
        elif case.graph == "text" and walk_type(self._tower.bundle, case.length) == "short":
            call = partial(self._model.text_model, first)
        else:
            raise UnableError("transformers has nothing like it")

        @torch.inference_mode()
        def run() -> Any:
            return call().pooler_output.numpy()

        return run
