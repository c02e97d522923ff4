//! Enums whose variants are words: spelled once, the same in Lua, SQL, JSON, metrics and logs.

/// A word that none of an enum's variants is spelled like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is none of {}", .known.join(", "))]
pub struct UnknownWord {
    /// The words that there are.
    pub known: &'static [&'static str],
    /// What was found instead, cut to a length that is safe to print.
    pub word: String,
}

impl UnknownWord {
    /// Says that `word` is none of those `known`.
    #[must_use]
    pub fn new(known: &'static [&'static str], word: &str) -> Self {
        Self { known, word: word.chars().take(40).collect() }
    }
}

/// Declares an enum whose variants are words, with `as_str`, `ALL`, `Display`, `FromStr` and serde by that word.
macro_rules! words {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
        $visibility enum $name {
            $($(#[$variant_meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every variant, in the order of its declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word that stands for this variant everywhere.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        // Not derived: serde_json calls a number or null in the place of an enum a mistake of syntax, and would not say where.
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = <String as serde::Deserialize>::deserialize(deserializer)?;
                word.parse().map_err(|_| serde::de::Error::unknown_variant(&word, &[$($word),+]))
            }
        }

        // Not derived: the derive does not see a word that comes out of a macro, and would show the variant's name.
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .enum_values(Some(Self::ALL.iter().map(|word| word.as_str())))
                    .into()
            }
        }

        impl utoipa::ToSchema for $name {}

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl From<$name> for &'static str {
            fn from(variant: $name) -> Self {
                variant.as_str()
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::domain::UnknownWord;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err($crate::domain::UnknownWord::new(&[$($word),+], other)),
                }
            }
        }
    };
}
pub(crate) use words;
