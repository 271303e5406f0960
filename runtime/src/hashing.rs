//! Hashes that every process of a run must compute alike: keys for random numbers, and digests of tensors. A change
//! here changes initial weights, fragments, roundings or digests.

/// Numbers that are converted to bytes at a time.
const CHUNK: usize = 1024;

/// A key for generators that take a `u64`: the first eight bytes, little-endian, of the BLAKE3 of `parts` one after the
/// other.
pub(crate) fn key(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().as_bytes().iter().take(8).rev().fold(0, |key, &byte| (key << 8) | u64::from(byte))
}

/// Digest of one tensor; see [`TensorHasher`].
pub(crate) fn digest(numbers: &[f32]) -> blake3::Hash {
    let mut hasher = TensorHasher::default();
    hasher.update(numbers);
    hasher.finalize()
}

/// Digests tensors one after the other: BLAKE3 of all numbers as little-endian f32.
#[derive(Debug, Default)]
pub(crate) struct TensorHasher(blake3::Hasher);

impl TensorHasher {
    pub(crate) fn update(&mut self, numbers: &[f32]) {
        let mut bytes = [0; 4 * CHUNK];
        for chunk in numbers.chunks(CHUNK) {
            let (four, _) = bytes.as_chunks_mut::<4>();
            four.iter_mut().zip(chunk).for_each(|(four, number)| *four = number.to_le_bytes());
            self.0.update(&bytes[..4 * chunk.len()]);
        }
    }

    pub(crate) fn finalize(&self) -> blake3::Hash {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_golden() {
        assert_eq!(key(&[b"layers.7.attention.wq"]), 10_399_533_591_754_455_795);
        assert_eq!(key(&[b"averaging head"]), 4_506_940_020_008_908_600);
        assert_eq!(key(&[b"basis", &7_u64.to_le_bytes()]), 17_995_103_850_533_569_738);
    }

    #[test]
    fn a_key_depends_on_the_bytes_and_not_on_where_they_are_parted() {
        assert_eq!(key(&[b"averaging ", b"head"]), key(&[b"averaging head"]));
        assert_ne!(key(&[b"anchor"]), key(&[b"basis"]));
    }

    #[test]
    fn digests_are_golden() {
        assert_eq!(digest(&[]).to_hex()[..16], *"af1349b9f5f9a1a6");
        assert_eq!(digest(&[1.0, -0.5, f32::MIN_POSITIVE]).to_hex()[..16], *"084e538c1bdac11f");
    }

    #[test]
    fn a_digest_is_that_of_all_bytes_in_order() {
        let numbers: Vec<f32> = (0..3 * CHUNK + 5).map(|i| (i as f32).sin()).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(digest(&numbers), blake3::hash(&bytes));
        let mut hasher = TensorHasher::default();
        numbers.chunks(100).for_each(|part| hasher.update(part));
        assert_eq!(hasher.finalize(), blake3::hash(&bytes));
    }
}
