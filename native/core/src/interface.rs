//! The interface of a bundle's graphs: names, types and shapes of their tensors, as this version runs them.

use std::slice::from_ref;

use crate::manifest::{Axis, GraphFile, Manifest, Sizes, TensorSpec};
use crate::messages::quoted;

/// Names of tensors. Features are the reference's own; embeds have length one.
pub mod names {
    #![allow(missing_docs)]
    pub const PATCHES: &str = "patches";
    pub const SPATIAL_SHAPES: &str = "spatial_shapes";
    pub const INPUT_IDS: &str = "input_ids";
    pub const WALK_TYPE: &str = "walk_type";
    pub const ATTENTION_MASK: &str = "attention_mask";
    pub const BOXES: &str = "boxes";
    pub const BOX_IMAGES: &str = "box_images";
    pub const MASKS: &str = "masks";
    pub const MASK_IMAGES: &str = "mask_images";
    pub const DENSE_FEATURES: &str = "dense_features";
}

/// A graph of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Images to vectors.
    Vision,
    /// Images to one vector per patch.
    Dense,
    /// Texts to vectors.
    Text,
    /// Boxes over dense features to vectors.
    Region,
    /// Masks over dense features to vectors.
    Mask,
}

impl Graph {
    /// Every graph.
    pub const ALL: [Graph; 5] = [Graph::Vision, Graph::Dense, Graph::Text, Graph::Region, Graph::Mask];

    /// Its name in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Graph::Vision => "vision",
            Graph::Dense => "dense",
            Graph::Text => "text",
            Graph::Region => "region",
            Graph::Mask => "mask",
        }
    }

    /// What a model lacks without it, as the end of a sentence.
    pub fn without(self) -> &'static str {
        match self {
            Graph::Vision => "no vision graph",
            Graph::Text => "no text graph",
            Graph::Dense => "no dense features, and so neither maps nor regions",
            Graph::Region => "no features of regions",
            Graph::Mask => "no features of masks",
        }
    }

    /// The name of its output: of length one, or the reference's own. Dense features come only as the latter.
    pub fn output(self, normalize: bool) -> &'static str {
        match (self, normalize) {
            (Graph::Vision, true) => "image_embeds",
            (Graph::Vision, false) => "image_features",
            (Graph::Text, true) => "text_embeds",
            (Graph::Text, false) => "text_features",
            (Graph::Region, true) => "region_embeds",
            (Graph::Region, false) => "region_features",
            (Graph::Mask, true) => "mask_embeds",
            (Graph::Mask, false) => "mask_features",
            (Graph::Dense, _) => names::DENSE_FEATURES,
        }
    }
}

/// How the graphs of a manifest differ from this version's, as the end of a sentence whose subject is the manifest.
pub fn misfit(manifest: &Manifest) -> Option<String> {
    let known = Graph::ALL.map(Graph::name);
    if let Some(unknown) = manifest.graphs.keys().find(|name| !known.contains(name)) {
        let list = ["vision", "text", "dense", "region", "mask"].join(", ");
        return Some(format!("lists the graph {}, which is none of {list}", quoted(unknown)));
    }
    let dense = ["region", "mask"].iter().any(|name| manifest.graphs.has(name));
    let needed = ["vision", "text"].into_iter().chain(dense.then_some("dense"));
    if let Some(missing) = needed.into_iter().find(|name| !manifest.graphs.has(name)) {
        return Some(format!("lists no {missing} graph"));
    }
    for graph in Graph::ALL {
        let Some(files) = manifest.graphs.get(graph.name()) else { continue };
        for (precision, file) in files.iter() {
            if let Some(fault) = file_misfit(manifest, graph, file) {
                return Some(format!("gives the {} graph in {} {fault}", graph.name(), quoted(precision)));
            }
        }
    }
    None
}

/// A tensor's name, type and shape, as they stand in messages.
pub fn describe(spec: &TensorSpec) -> String {
    let axes: Vec<String> = spec.shape.iter().map(axis).collect();
    format!("{} {} [{}]", spec.name, spec.dtype, axes.join(", "))
}

fn axis(axis: &Axis) -> String {
    match axis {
        Axis::Size(size) => size.to_string(),
        Axis::Named(name) => name.clone(),
    }
}

fn spec(name: &str, dtype: &str, shape: &[Axis]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: dtype.into(), shape: shape.to_vec() }
}

/// The inputs and outputs of a graph in a bundle of this manifest.
fn tensors(manifest: &Manifest, graph: Graph) -> (Vec<TensorSpec>, Vec<TensorSpec>) {
    use names::*;
    let named = |name: &str| Axis::Named(name.into());
    let size = |size: usize| Axis::Size(size as i64);
    let (batch, patches, tokens) = (named("batch"), named("patches"), named("tokens"));
    let image = &manifest.image;
    let width = size(manifest.embedding_size as usize);
    let grids = spec(SPATIAL_SHAPES, "int32", &[batch.clone(), size(2)]);
    let square = matches!(image.sizes, Sizes::Square { .. });
    let length = if square { size(image.max_num_patches() as usize) } else { patches.clone() };
    let vectors = |of: &Axis, graph: Graph| {
        [false, true].map(|normalize| spec(graph.output(normalize), "float32", &[of.clone(), width.clone()])).to_vec()
    };
    let of_images = || {
        let bytes = size(image.patch_bytes());
        let mut inputs = vec![spec(PATCHES, "uint8", &[batch.clone(), length.clone(), bytes])];
        inputs.extend((!square).then(|| grids.clone()));
        inputs
    };
    // One graph of regions serves every grid, whatever the vision tower takes.
    let dense = || spec(DENSE_FEATURES, "float32", &[batch.clone(), patches.clone(), width.clone()]);
    match graph {
        Graph::Vision => (of_images(), vectors(&batch, graph)),
        Graph::Dense => {
            let mut outputs = vectors(&batch, Graph::Vision);
            outputs.push(spec(DENSE_FEATURES, "float32", &[batch.clone(), length.clone(), width.clone()]));
            (of_images(), outputs)
        }
        Graph::Text => {
            let ids = [batch.clone(), tokens];
            let mut inputs = vec![spec(INPUT_IDS, "int32", &ids), spec(WALK_TYPE, "int32", from_ref(&batch))];
            inputs.extend(manifest.text.attention_mask.then(|| spec(ATTENTION_MASK, "int32", &ids)));
            (inputs, vectors(&batch, graph))
        }
        Graph::Region => {
            let boxes = named("boxes");
            let inputs = vec![
                dense(),
                grids.clone(),
                spec(BOXES, "float32", &[boxes.clone(), size(4)]),
                spec(BOX_IMAGES, "int32", from_ref(&boxes)),
            ];
            (inputs, vectors(&boxes, graph))
        }
        Graph::Mask => {
            let masks = named("masks");
            let inputs = vec![
                dense(),
                spec(MASKS, "float32", &[masks.clone(), patches.clone()]),
                spec(MASK_IMAGES, "int32", from_ref(&masks)),
            ];
            (inputs, vectors(&masks, graph))
        }
    }
}

fn file_misfit(manifest: &Manifest, graph: Graph, file: &GraphFile) -> Option<String> {
    let (mut inputs, outputs) = tensors(manifest, graph);
    let mut kinds: Vec<i32> = manifest.text.walk_types.values().map(|kind| kind.index).collect();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.len() == 1 && !file.inputs.iter().any(|spec| spec.name == names::WALK_TYPE) {
        inputs.retain(|spec| spec.name != names::WALK_TYPE);
    }
    for (role, given, expected) in [("input", &file.inputs, inputs), ("output", &file.outputs, outputs)] {
        for spec in given {
            let Some(wanted) = expected.iter().find(|wanted| wanted.name == spec.name) else {
                return Some(format!("the unknown {role} {}", quoted(&spec.name)));
            };
            if spec != wanted {
                return Some(format!("the {role} {}, not {}", describe(spec), describe(wanted)));
            }
            if given.iter().filter(|other| other.name == spec.name).count() > 1 {
                return Some(format!("the {role} {} twice", spec.name));
            }
        }
        if let Some(missing) = expected.iter().find(|spec| !given.iter().any(|other| other.name == spec.name)) {
            return Some(format!("no {role} {}", missing.name));
        }
    }
    None
}
