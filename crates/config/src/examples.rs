//! Recipes that travel with the binary: `equipoise init` prints them.

/// A commented recipe to start from.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// What `init` calls it.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
}

impl Example {
    /// The first comment line of the recipe.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

macro_rules! examples {
    ($($name:literal),* $(,)?) => {
        /// All embedded recipes.
        pub const EXAMPLES: &[Example] = &[
            $(Example { name: $name, text: include_str!(concat!("../../../configs/recipes/", $name, ".toml")) },)*
        ];
    };
}

examples![
    "quickstart",
    "quickstart-lt-only",
    "fg-imagenet-lt",
    "fg-imagenet-lt-rows",
    "fg-imagenet-lt-quality",
    "fg-nico",
    "pretrain-fmnist",
    "toy",
];
