package compat;

import org.openapitools.client.ApiClient;
import org.openapitools.client.ApiException;
import org.openapitools.client.ApiResponse;
import org.openapitools.client.api.CallbacksApi;
import org.openapitools.client.api.OperationsApi;
import org.openapitools.client.api.ReadsApi;
import org.openapitools.client.model.Member;

/** The library okhttp-gson, which is openapi-generator's default. */
final class Library {
  private static ApiClient client(String url, String authorization) {
    return new ApiClient().setBasePath(url).addDefaultHeader("Authorization", authorization);
  }

  static ReadsApi reads(String url, String authorization) {
    return new ReadsApi(client(url, authorization));
  }

  static CallbacksApi callbacks(String url, String authorization) {
    return new CallbacksApi(client(url, authorization));
  }

  static OperationsApi operations(String url, String authorization) {
    return new OperationsApi(client(url, authorization));
  }

  /** Status and ETag. */
  static String[] member(ReadsApi reads, String group, String user, String etag) throws ApiException {
    try {
      ApiResponse<Member> answer = reads.getMemberWithHttpInfo(group, user, etag);
      String found =
          answer.getHeaders().entrySet().stream()
              .filter(header -> header.getKey().equalsIgnoreCase("ETag"))
              .map(header -> header.getValue().get(0))
              .findFirst()
              .orElse(null);
      return new String[] {"" + answer.getStatusCode(), found};
    } catch (ApiException answer) {
      return new String[] {"" + answer.getCode(), null};
    }
  }

  static int status(Exception failed) {
    return ((ApiException) failed).getCode();
  }

  static String body(Exception failed) {
    return ((ApiException) failed).getResponseBody();
  }
}
