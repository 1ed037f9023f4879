//! The conditions of a batch, with what the network's layers make of them alone.

use std::cell::{Cell, RefCell};
use tch::Tensor;

/// Text embeddings and class labels. What depends on nothing else (keys and values of the text in every attention layer,
/// the embedding of the labels) is the same at every step of sampling, so it is computed at the first and kept: the same
/// bits, sooner. Use one for one network and one number format only.
#[derive(Debug)]
pub struct Conditioning {
    /// [N, L, D].
    text: Tensor,
    /// [N, P].
    class_labels: Option<Tensor>,
    embedded: RefCell<Option<Tensor>>,
    /// Keys and values by attention layer, in the order in which a forward pass meets them.
    keys: RefCell<Vec<(Tensor, Tensor)>>,
    /// Position of the next layer in this pass.
    layer: Cell<usize>,
}

impl Conditioning {
    /// Text embeddings [N, L, D] and, for networks with a class embedding, class labels [N, P].
    pub fn new(text: Tensor, class_labels: Option<Tensor>) -> Self {
        Self {
            text,
            class_labels,
            embedded: RefCell::default(),
            keys: RefCell::default(),
            layer: Cell::default(),
        }
    }

    /// A pass begins with the first layer.
    pub(super) fn begin(&self) {
        self.layer.set(0);
    }

    /// The embedding of the labels by `embed`, computed once.
    pub(super) fn class_embedding(&self, embed: impl FnOnce(&Tensor) -> Tensor) -> Option<Tensor> {
        let labels = self.class_labels.as_ref()?;
        Some(self.embedded.borrow_mut().get_or_insert_with(|| embed(labels)).shallow_clone())
    }

    /// Whether there are class labels.
    pub(super) fn has_class_labels(&self) -> bool {
        self.class_labels.is_some()
    }

    /// Keys and values of the text in the next layer by `project`, computed once.
    pub(super) fn next_keys(&self, project: impl FnOnce(&Tensor) -> (Tensor, Tensor)) -> (Tensor, Tensor) {
        let layer = self.layer.replace(self.layer.get() + 1);
        let mut keys = self.keys.borrow_mut();
        if layer == keys.len() {
            keys.push(project(&self.text));
        }
        let (key, value) = &keys[layer];
        (key.shallow_clone(), value.shallow_clone())
    }
}
