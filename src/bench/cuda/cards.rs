//! What the makers of GPUs promise. (NVIDIA's data sheets: dense bf16 with f32 sums, and memory bandwidth.)

/// A card's peaks.
pub(super) struct Card {
    /// Within the driver's name for it.
    name: &'static str,
    /// Tensor cores, bf16 with f32 sums, in TFLOP/s.
    pub bf16_tflops: f64,
    /// Memory, in GB/s.
    pub memory_gbs: f64,
}

/// Longer names first where one is within another.
const CARDS: [Card; 12] = [
    Card { name: "B200", bf16_tflops: 2250.0, memory_gbs: 8000.0 },
    Card { name: "H200", bf16_tflops: 989.4, memory_gbs: 4800.0 },
    Card { name: "H100 PCIe", bf16_tflops: 756.0, memory_gbs: 2000.0 },
    Card { name: "H100 NVL", bf16_tflops: 835.0, memory_gbs: 3900.0 },
    Card { name: "H100", bf16_tflops: 989.4, memory_gbs: 3350.0 },
    Card { name: "A100-SXM4-80GB", bf16_tflops: 312.0, memory_gbs: 2039.0 },
    Card { name: "A100 80GB PCIe", bf16_tflops: 312.0, memory_gbs: 1935.0 },
    Card { name: "A100", bf16_tflops: 312.0, memory_gbs: 1555.0 },
    Card { name: "L40S", bf16_tflops: 362.0, memory_gbs: 864.0 },
    Card { name: "L4", bf16_tflops: 121.0, memory_gbs: 300.0 },
    Card { name: "A10", bf16_tflops: 125.0, memory_gbs: 600.0 },
    Card { name: "RTX 4090", bf16_tflops: 165.2, memory_gbs: 1008.0 },
];

/// That of this name, if it is known.
pub(super) fn card(name: &str) -> Option<&'static Card> {
    // A name ends where a word does: an A10 is no A100.
    let is_here = |card: &&Card| {
        name.match_indices(card.name).any(|(at, found)| {
            let next = name[at + found.len()..].chars().next();
            next.is_none_or(|c| !c.is_alphanumeric())
        })
    };
    CARDS.iter().find(is_here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_known_by_the_names_of_the_driver() {
        let memory = |name| card(name).map(|card| card.memory_gbs);
        assert_eq!(memory("NVIDIA H200"), Some(4800.0));
        assert_eq!(memory("NVIDIA H100 80GB HBM3"), Some(3350.0));
        assert_eq!(memory("NVIDIA H100 PCIe"), Some(2000.0));
        assert_eq!(memory("NVIDIA A100-SXM4-80GB"), Some(2039.0));
        assert_eq!(memory("NVIDIA A100-SXM4-40GB"), Some(1555.0));
        assert_eq!(memory("NVIDIA A10"), Some(600.0));
        assert_eq!(memory("NVIDIA L40S"), Some(864.0));
        assert_eq!(memory("PTX interpreter"), None);
        assert_eq!(memory("NVIDIA A1000"), None);
    }
}
